"""The report of a study: its tables, warnings, figures and HTML page."""
