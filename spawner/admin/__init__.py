"""What the Hub's administrator does for a site: add it, issue its engine's certificates, check it from the Hub's side.

    python -m spawner.admin      the commands
    certificates                 an authority of its own for each site's engine
    adding                       writes `sites.d/<slug>.toml`, once the whole deployment is right with it
    checks, report               looks at every part of a site, and tells it plainly
    steps                        who does what next

`spawner.sites_page` offers the same in the Hub.
"""
