"""`quire bench serve --plot`: one self-contained HTML file of what was measured."""
