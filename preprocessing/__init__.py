"""From raw frames to the dataset: validate, condition, compensate poses, mask."""
