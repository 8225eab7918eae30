/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What the attacks of test/escapes share. Each is one static program that attempts one thing, says in one line what
 * came of it and ends with one of three statuses. Against the bare host it does no harm: it takes what the runner made for it.
 */
#ifndef AMBIT_ATTACK_H
#define AMBIT_ATTACK_H

#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

enum { WORKED = 0, REFUSED = 10, ABSENT = 20 };

__attribute__((noreturn, format(printf, 2, 3))) static inline void end(int status, const char *format, ...) {
  char line[512];
  va_list values;
  va_start(values, format);
  int length = vsnprintf(line, sizeof line - 1, format, values);
  va_end(values);
  if (length > (int)sizeof line - 2)
    length = sizeof line - 2;
  line[length++] = '\n';
  ssize_t ignored = write(1, line, length);
  (void)ignored;
  _exit(status);
}

/* The attack did what it set out to do. */
#define worked(...) end(WORKED, __VA_ARGS__)
/* This kernel or host has no such thing; the line says what is missing. */
#define absent(...) end(ABSENT, __VA_ARGS__)
/* It was stopped, without an error of the kernel to tell. */
#define held(...) end(REFUSED, __VA_ARGS__)

static inline const char *error_name(int error) {
  const char *name = strerrorname_np(error);
  return name == NULL ? "no error" : name;
}

/* It was stopped by errno, at the step that is named. */
__attribute__((noreturn, unused)) static void refused(const char *step) {
  end(REFUSED, "%s: %s", step, error_name(errno));
}

/* The result of a step that must succeed for the attack to go on. */
__attribute__((unused)) static long step(long result, const char *what) {
  if (result < 0)
    refused(what);
  return result;
}

/* The argument that the runner gives. */
__attribute__((unused)) static const char *argument(int argc, char **argv, int index) {
  if (index >= argc)
    end(99, "argument %d is missing", index);
  return argv[index];
}

/* Opens for writing and writes back what was there: shows the right to change it without changing it. */
__attribute__((unused)) static void write_back(const char *path) {
  char value[4096];
  int from = (int)step(open(path, O_RDONLY | O_CLOEXEC), path);
  ssize_t size = step(read(from, value, sizeof value), path);
  int to = (int)step(open(path, O_WRONLY | O_CLOEXEC), path);
  step(write(to, value, size), path);
  worked("%s could be set", path);
}

#endif
