"""The pictures people look at: self-contained HTML pages with inline SVG. They open without server or network."""
