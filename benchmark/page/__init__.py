"""A report as one HTML page: charts as SVG, tables, pictures, no network."""
