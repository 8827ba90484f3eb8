"""NetworkPolicy: who may speak with the pods of this node."""
