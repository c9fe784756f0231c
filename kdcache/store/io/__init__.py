"""Where it lies: folders and object stores behind one path, durable writes, open files."""
