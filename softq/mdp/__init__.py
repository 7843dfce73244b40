"""The theory: readouts of a vocabulary, soft Q and V, and MDPs small enough to enumerate."""
