"""Many clients, two replicas of the registry, and somebody who kills them; then an account of what is left."""
