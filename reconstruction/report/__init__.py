"""The report that goes with a model: `report.json` for programs, `report.html` for people."""
