-- Run once by the database's container: JupyterHub keeps its tables apart from the service's.
CREATE DATABASE jupyterhub OWNER federation;
