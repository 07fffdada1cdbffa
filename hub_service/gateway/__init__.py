"""Fleet traffic: node key -> project -> aggregator; long polls; limits."""
