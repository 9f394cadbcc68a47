"""How refusals are worded, one file and one row a language; `rows` is the table."""
