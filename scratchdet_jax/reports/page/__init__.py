"""What the pages of the tools share: style, charts, tables, pictures and wording."""
