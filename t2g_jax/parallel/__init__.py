"""How arrays lie on devices: the mesh, one table of sharding rules, shapes."""
