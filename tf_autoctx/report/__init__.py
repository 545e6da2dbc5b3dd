"""What a person reads of results: tables, figures, the views of cases, and the HTML page."""
