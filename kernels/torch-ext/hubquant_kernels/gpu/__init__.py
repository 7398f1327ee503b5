"""The operators in Triton, one file each under the name of the file beside this folder that defines it. Needs triton."""
