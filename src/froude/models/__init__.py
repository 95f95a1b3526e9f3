"""What is computed: architectures become operators with FLOPs, bytes, shapes and shardable axes."""
