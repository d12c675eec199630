"""From probabilities to a mask: one step per module, all on volumes (z, y, x), integer or comparison arithmetic."""
