"""The report of a study: its tables, warnings, figures and the page."""
