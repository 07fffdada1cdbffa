"""For the administrator of a site: keeps the site's notebook servers from reaching anything but the Hub, and proves it.

    python -m spawner.site up|check|down     run on the host of the site's Docker engine
    isolation                                the one script that sets the rules and makes the network
    inside                                   the program that tries everything from inside a container
    probes                                   what is tried, where, and what is expected of it
    report                                   the table

`probes.run_probes` serves the Hub's side as well.
"""
