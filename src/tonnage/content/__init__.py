"""What an artifact is: digests, descriptors, manifests, references, and what is asked of a store. No I/O."""
