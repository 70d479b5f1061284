"""The paper's thesis on small detectors: its rows, its orderings, and the report on them."""
