"""`orders.csv`: a download of the table as it is now, which `orders_plugin.py` adds to the page "Exports"."""
