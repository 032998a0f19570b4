"""Loop, optimisers, losses, memory plan and run folders. Knows a Ranker, never a particular model."""
