"""Scans from elsewhere as capture bundles: one module a source, each with its conventions."""

from scan2twin.importers.detect import Imported, as_bundle, import_scan

__all__ = ["Imported", "as_bundle", "import_scan"]
