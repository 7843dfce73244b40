"""From batches to a trained policy: sources of batches, the plan of a step, the loop, what is logged and written."""
