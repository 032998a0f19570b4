"""Pure tensor maths without parameters: jagged rows, factored target attention, hashing, bucket sums."""
