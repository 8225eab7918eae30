/* SPDX-License-Identifier: Apache-2.0 */
/* Leaves a tree that is deeper than a path can be, for whoever must remove it by its name. */
#include "../attack.h"

int main(int argc, char **argv) {
  char name[201];
  memset(name, 'd', sizeof name - 1);
  name[sizeof name - 1] = 0;
  step(chdir(argument(argc, argv, 1)), "entering the directory");
  step(mkdir(argument(argc, argv, 2), 0755), "making a directory");
  step(chdir(argv[2]), "entering it");
  for (int depth = 0; depth < 2000; depth++) {
    step(mkdir(name, 0755), "making a directory");
    step(chdir(name), "entering it");
  }
  held("left a tree of 2000 directories");
}
