"""Infrastructure: configuration, devices, disk and time around the maths of the rest of the
package.
"""
