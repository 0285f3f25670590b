"""The artifact store: where every stage finds its inputs and leaves its output."""
