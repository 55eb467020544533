// nexus-probe asks the kernel what a program without system calls of its own cannot ask.
package main

func main() {}
