"""The report: tables, figures, dashboards and the page that holds them."""
