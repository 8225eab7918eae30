# The default path of `npm install`: node-gyp finds this file and hands over to the one CMake build.
{
  'targets': [{
    'target_name': 'cmake',
    'type': 'none',
    'actions': [{
      'action_name': 'cmake-js',
      'inputs': ['CMakeLists.txt'],
      'outputs': ['build/Release/ambit.node'],
      'action': ['npm', 'run', '--silent', 'build:native'],
      'message': 'building with CMake',
    }],
  }],
}
