"""What every part of scan2twin shares: capture format, artifact store, stage contract, configuration, CLI."""

__version__ = "0.1.0"
