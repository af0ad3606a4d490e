def with_nodes(affinity, names):
    return affinity
