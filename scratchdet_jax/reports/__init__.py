"""Reports on data sets and runs: the doctor, the report, and what they measure."""
