"""What people look at: figures (the only importer of matplotlib), the end table, and the report
that holds them.
"""
