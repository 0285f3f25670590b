"""Scans from elsewhere as capture bundles: one module a source, each with its conventions."""
