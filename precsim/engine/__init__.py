"""The engine: policy, context, the funnel through which every op passes, ops, and the tape."""
