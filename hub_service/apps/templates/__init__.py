"""A Flower app made from a notebook: `notebook` holds the cells, the other modules connect them to Flower."""
