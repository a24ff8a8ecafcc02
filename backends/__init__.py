"""The backends, one module for each topology. Open them by URL; import them only to extend them."""
