"""The sections of the report: each measures, words and draws its own figures."""
