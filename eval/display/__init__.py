"""Numbers in words and figures as SVG, as table, card and report show them."""
