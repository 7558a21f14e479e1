"""Parts of collect_results.py: records, statistics, tables, figures and the HTML report."""
