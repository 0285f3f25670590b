"""From the dataset to the model: differentiable rendering, textures, export."""
