"""The commands behind ``python -m pwconv``. The library does not import them."""
