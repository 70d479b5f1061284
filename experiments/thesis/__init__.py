"""The paper's thesis on small detectors: the rows of the tables, the orderings, the report."""
