// Loaded before the C library: every write to a regular file takes half of what it is given.
#define _GNU_SOURCE
#include <dlfcn.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

static size_t half(int fd, size_t n) {
    struct stat s;
    return n > 1 && fstat(fd, &s) == 0 && S_ISREG(s.st_mode) ? n / 2 : n;
}

ssize_t write(int fd, const void * bytes, size_t n) {
    ssize_t (*next)(int, const void *, size_t) = dlsym(RTLD_NEXT, "write");
    return next(fd, bytes, half(fd, n));
}

ssize_t pwrite64(int fd, const void * bytes, size_t n, off64_t at) {
    ssize_t (*next)(int, const void *, size_t, off64_t) = dlsym(RTLD_NEXT, "pwrite64");
    return next(fd, bytes, half(fd, n), at);
}

ssize_t writev(int fd, const struct iovec * parts, int count) {
    ssize_t (*next)(int, const struct iovec *, int) = dlsym(RTLD_NEXT, "writev");
    struct iovec first;
    if (count < 1) {
        return next(fd, parts, count);
    }
    first = parts[0];
    first.iov_len = half(fd, first.iov_len);
    return first.iov_len == parts[0].iov_len ? next(fd, parts, count) : next(fd, &first, 1);
}
