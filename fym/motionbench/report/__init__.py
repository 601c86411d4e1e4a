"""The report on a results folder: a page that needs nothing else, and tables for programs and papers."""
